//! Test support: a broker as a child process and the scenario runner.

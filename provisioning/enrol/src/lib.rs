//! Pure provisioning rules and the admin API types.

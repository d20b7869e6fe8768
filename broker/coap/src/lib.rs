//! CoAP front end: endpoint, exchanges, blockwise transfer, observation, resources as topics.

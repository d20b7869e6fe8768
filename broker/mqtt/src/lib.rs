//! MQTT front end: codec guard, sans-io session, listeners.

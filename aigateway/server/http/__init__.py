"""The service over HTTP: endpoints, bodies, errors, and bounds on requests and connections."""

"""In-memory stand-ins at our own ports, for tests of what lies above them."""

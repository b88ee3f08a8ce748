"""A fleet of light virtual gateways on the real wire: real messages, real JPEGs, no cameras."""

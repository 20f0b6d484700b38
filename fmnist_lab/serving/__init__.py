"""A model behind HTTP: its answers to requests, the server, and the page for photographs."""

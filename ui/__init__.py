"""The code assistant's web page (Gradio).

Talks to the server through the same public HTTP API as every other client. May import `rrtf_serve`;
imported by nobody: the server finds `page.mount` by entry point.
"""

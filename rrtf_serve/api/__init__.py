"""How clients ask: OpenAI's HTTP API over a scheduler.

May import `engine` and `models`; imported by `main`.
"""

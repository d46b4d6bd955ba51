"""Chat completions as OpenAI's API has them: requests in, answers and errors out.

Knows neither sockets nor asyncio, as the room around it. May import `text` and below.
"""

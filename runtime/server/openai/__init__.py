"""The door for clients of OpenAI's API, under `/v1`. May import what `server` may.

`door` answers requests, `exchange` is one request and its answer, `completion` is a turn whose frames become that
answer, `prompts` makes a turn of a conversation.
"""

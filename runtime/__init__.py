"""The runtime: serves an artifact that was proven, and nothing else.

Rooms, from the ground up; a room imports from those below it only: `defaults`, `host` (what the process stands on),
`artifact` (the folder and its contract), `engines` (vLLM and TensorRT-LLM behind one interface), `text` (language to
tokens and back), `wire` (what is said over a socket), `deployment` (what is served, with which settings), `turns`
(sessions and turns), `server` (sockets and the process), `cli`.
"""

__version__ = "0.1.0"

"""The API of a server: OpenAI's, as far as it fits text that is written in any order.

| module | what it holds |
|---|---|
| `app` | the app of endpoints |
| `schemas` | what a request may hold |
| `admission` | what a request gets, by a server's policy |
| `answering` | answers, whole and piece by piece |
| `alternatives` | what else is likely at a place of a text |
| `flights` | rows on their way through the engine |
| `shapes` | the JSON of answers |
| `forms` | an error as OpenAI's API tells it |
| `errors` | what goes wrong with a request, as such errors |
| `guards` | keys, sizes of bodies, the log of requests |
| `server` | the process: a socket, uvicorn, signals |
| `limits` | what is taken of one request |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)

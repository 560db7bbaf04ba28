"""A trained model as a service.

| module | what it holds |
|---|---|
| `gateway` | a proxy before several regions |
| `api` | OpenAI's API of a server; the extra `serve` |
| `versions` | versions of models in a registry: named, stored, served, compared |
| `watching` | what a server does and how well, and what it does about it |
| `offering` | models as clients know them, requests as rows, rows as text |
| `batching` | the engine: the rows of many requests, written together on the device |
| `rows` | what is compiled for rows, and what it is given |
| `jobs` | what is asked of an engine, and what it tells |
| `digests` | what decides the text of a model: a version, with digests |
| `tables` | tables of a TOML file |
| `repeating` | a look every so many seconds, on a thread of its own |

Imports go down this table only. `page/` is what a browser shows of a server.
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)

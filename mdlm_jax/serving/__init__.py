"""A trained model as a service.

| module | what it holds |
|---|---|
| `gateway` | a proxy before several regions |
| `jobs` | what is asked of an engine, and what it tells |
| `engine` | the engine: one thread that owns the device |
| `loading` | a deployment of a model that was loaded |
| `offers` | models as clients know them |
| `plans` | from a request to rows of the engine |
| `texts` | from the tokens of a row back to text |
| `api` | OpenAI's API of it; the extra `serve` |
| `asides` | little work beside the rows, at low priority |
| `canary` | texts whose cross-entropy by mask rate tells whether a model is what it was |
| `quality` | the canaries of a server, measured again and again |
| `served` | a deployment, and the lanes that an engine makes of it |
| `lanes` | the slots of one kind of rows, and their rounds |
| `waiting` | jobs that wait for a slot |
| `checking` | jobs are checked before they wait |
| `stats` | what an engine tells of itself |
| `metrics` | what a replica counts, for Prometheus; the extra `serve` |
| `compilations` | counts what is compiled where nothing should be |
| `policy` | when a server does less for a text, so that all get one |
| `steering` | a policy at work |
| `tables` | tables of a TOML file |
| `kinds` | what a compiled program depends on |
| `programs` | the compiled programs of one kind of rows |
| `given` | what the host tells the device of each slot |
| `row_options` | what shapes each row, beside its state |
| `whole_rows` | rows of models that see the whole row |
| `block_rows` | rows of models of blocks, with their cache |
| `references` | names of versions as a user writes them, and shares of traffic |
| `registry` | versions in MLflow's model registry |
| `deployments` | which versions a server serves, followed and chosen for requests |
| `repeating` | a look every so many seconds, on a thread of its own |
| `versions` | what decides the text of a model, with digests |
| `comparing` | two versions on the same prompts |

`page/` is what a browser shows of a server.
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)

"""What a server offers: models by name, and text for requests.

| module | what it holds |
|---|---|
| `offers` | models as clients know them |
| `loading` | a deployment of a model that was loaded |
| `plans` | from a request to rows of the engine |
| `texts` | from the tokens of a row back to text |
"""

from mdlm_jax import lazy

__getattr__, __dir__ = lazy.modules(__name__, __path__)

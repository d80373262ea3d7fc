"""`rag serve`: the pipelines of one index over HTTP, in the shape that OpenAI's clients speak.

`auth` and `limits` say who may ask and how much; `engine` runs the pipelines in a bounded pool of threads on one open
index; `guard` refuses a request before its body is read; `routes_*` are the endpoints, `app` puts them together, and
`listen` runs the whole. FastAPI and uvicorn are imported by the last four only, so nothing else of rag loads them.
"""

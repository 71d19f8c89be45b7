"""OpenAI's HTTP API in front of one Llama. Needs the extra `server`.

app.py has the routes, worker.py the queue and the one thread that owns the Llama, engine.py what a
request does with it.
"""

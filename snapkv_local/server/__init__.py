"""OpenAI's HTTP API in front of one Llama. Needs the extra `server`.

app.py has the routes, worker.py the queue and the threads that answer, pool.py the conversations, and
engine.py what a request does with one.
"""

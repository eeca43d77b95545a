"""Workers: take a chunk of routed jobs from a bucket queue and hand each job to its remote.

The story of a chunk is ``engine.Engine.work``; what an attempt's end means is decided in ``policy``; how
much may go is asked in ``throttle``; the conversation itself is ``delivery``; outcomes are written by
``outcomes``. ``tasks`` is the only file that knows Celery, beside its pool.
"""

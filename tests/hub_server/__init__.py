"""A Hub for tests on the loopback interface, with the API for model repositories that the real client uses.

Behind the API are real git repositories and a real LFS store; nothing is mocked in between.

    with HubServer(tmp_path) as hub:
        hub.tokens['hf_...'] = User('ann')
        hub.inject('commit', Fault(status=503))
        HfApi(endpoint=hub.url, token='hf_...').create_commit(...)
"""
from .faults import Fault
from .server import HubServer, Request, User

__all__ = ['Fault', 'HubServer', 'Request', 'User']

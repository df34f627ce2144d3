"""A Hub to test against: what the real client asks of the model repositories of huggingface.co, on the loopback.

Real git repositories and a real LFS store behind the write and the read API; no mock between them and the client.

    with HubServer(tmp_path) as hub:
        hub.tokens['hf_...'] = User('ann')
        hub.inject('commit', Fault(status=503))
        HfApi(endpoint=hub.url, token='hf_...').create_commit(...)
"""
from .faults import Fault
from .server import HubServer, Request, User

__all__ = ['Fault', 'HubServer', 'Request', 'User']

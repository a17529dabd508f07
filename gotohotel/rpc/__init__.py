"""gRPC: the server side and the client side.

access    roles, side effects and paths of each RPC, read from the proto's method options
identity  the caller, as the gateway found it in the token
deadline  the remaining time of the current call
status    errors as google.rpc.Status
health    answers to health checks
server    serves RPCs
client    calls another service
"""

"""gRPC, both edges.

access    who may make which call, and whether it changes anything: read from the proto's method options
identity  who calls, as the gateway's check of the token found
deadline  how long the current call may still take
status    errors as google.rpc.Status
server    serves RPCs
client    calls another service
"""

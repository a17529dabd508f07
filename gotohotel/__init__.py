"""The kernel: mechanisms that every service uses, and no business word.

domain       the vocabulary of aggregates, values and errors (pure)
database     PostgreSQL: the pool, transactions, migrations
outbox       events written in the aggregate's own transaction, and the relay that publishes them
inbox        which events a service has already handled
idempotency  which requests a service has already answered
policies     which function runs whenever an event has happened
bus          NATS JetStream: streams, consumers, dead letters
wire         values as they stand in messages
rpc          gRPC: the server's edge, the client's edge, errors, deadlines
conflicts    repeats what lost a race
settings     a service's settings, from the environment
app          ordered start, drain
log, trace   what is written about a run

The compiled contract lies beside it: gotohotel.<service>.v1.*_pb2, from protos/.
"""

import os

# grpc reads this variable when it is loaded, so it is set here, before any of our modules can load grpc. The older
# polling needs a tenth less CPU per order than the EventEngine (decision 6).
os.environ.setdefault(
    "GRPC_EXPERIMENTS",
    "-event_engine_listener,-event_engine_client,-event_engine_callback_cq,-event_engine_for_all_other_endpoints",
)

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
app          settings, ordered start, drain
log, trace   what is written about a run

The compiled contract lies beside it: gotohotel.<service>.v1.*_pb2, from protos/.
"""

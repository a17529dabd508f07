"""Measures throughput, latency and cost per order: `make bench`.

__main__  the run and its report
load      closed-loop and paced orders through the gateway
scale     full tables against empty ones
against   this code and that of another commit in turn
floor     this code and the bare calls of an order in turn
bare      stand-ins for order_svc and pay_svc, which only pass on these calls
steady    full load for minutes
replicas  several of each against one of each
fleet     runs several of each, as a cluster would, and replaces them
names     a name server that knows who is ready
reads     the calls that read
pgbench   the same statements in pgbench
watches   a thousand open watches
rebuilding  My page, from the stream
usage     CPU and memory per process
siege     the original's load test of its circuit breaker: `make siege`
overload  five times the sustainable rate: `make overload`
plot      a bar chart as SVG
"""

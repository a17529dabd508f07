"""The operator's command line: `gotohotel …`.

__main__      the command line
commands      its commands
console       tables and progress bars
stack         the embedded stack: up, down, status
settings      its folder and ports, from the environment
credentials   its passwords and keys
addresses     how its parts reach one another
configuration  the configuration of its parts, and their command lines
supervision   supervisord
interrupting  starts what may interrupt other processes
cluster       a hotel whose parts run elsewhere, as in Kubernetes
smoke         whether a hotel works
provisioning  roles, databases, schemas, streams, consumers
catalogue     the sample catalogue
events        all event types
services      the table of services, from which ports, users, secrets and settings follow
ports         free ones, and whether one answers
postgres      its PostgreSQL: cluster, databases, roles
nats_server   its NATS: configuration, users
gateway       Envoy's configuration
tokens        the laptop's token issuer
demo          the main job, as a story
audit         checks the invariants
dead_letters, republish, rebuild  repairs after events went wrong
stream        the stream and its archive
backup        a copy of a whole hotel, and a hotel from it
errors        errors without a traceback
"""

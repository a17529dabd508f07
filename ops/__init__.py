"""What an operator runs, as one command line: `gotohotel …`.

__main__  the command line
commands  its commands
console   tables and progress bars
stack     the embedded stack: up, down, status
settings  its folder and ports, from the environment
credentials    its passwords and keys
addresses how its parts reach one another
configuration  what its parts read, and how they are run
supervision    supervisord
provisioning   roles, databases, schemas, streams, consumers
catalogue the sample catalogue
events    the types of all events
services  the table of services, from which the others take ports, users, secrets and settings
postgres  its PostgreSQL: cluster, databases, roles
nats_server    its NATS: configuration, users
gateway   Envoy's configuration
tokens    the laptop's issuer of tokens
demo      the main job, as a story
audit     the invariants, checked
dead_letters, republish, rebuild    what is done when events went wrong
stream    NATS, as these commands reach it
errors    what an operator is told instead of a traceback
"""

"""The images and the chart's manifests in containers, without a cluster: `make containers`.

__main__  the steps, each with a verdict
engine    podman, with everything of its own in one folder, and the images
pods      runs what a manifest describes, probes it, and restarts what does not live

It is our reading of the manifests, not Kubernetes'. Admission, scheduling, autoscaling, network policies, and rolling
updates are seen in a cluster only.
"""

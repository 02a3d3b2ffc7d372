"""The steps of a local run in containers, by Docker or by podman's Docker-compatible socket (`DOCKER_HOST`)."""

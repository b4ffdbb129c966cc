# MyPyPi in a container. MYPYPI_MODE chooses the daemon: server or worker. The server listens on port 80, and data is in
# /data. Redis runs in another container (docker-compose.yml has all of them).
#
#   docker build -t mypypi .
#   docker run --init -p 8080:80 -e MYPYPI_REDIS_URL=redis://… -v mypypi:/data mypypi

# An exact version, so that each build is the same. Raise it for security updates, or name a digest (…@sha256:…).
ARG PYTHON=3.13.14-slim-trixie

FROM python:${PYTHON} AS build
WORKDIR /src
# .dockerignore limits this to the sources, so that no file with settings gets into the image.
COPY . .
# The last step writes Twisted's plugin cache, since the daemon's user can't write it later. It waits a second after the
# install: a layer keeps whole seconds, and a cache that is not newer than its plugins is rebuilt at every start.
RUN python -m venv /opt/mypypi \
 && /opt/mypypi/bin/pip install --no-cache-dir --disable-pip-version-check . \
 && sleep 1 \
 && /opt/mypypi/bin/twistd --help >/dev/null

FROM python:${PYTHON}
COPY --from=build /opt/mypypi /opt/mypypi
# /data is empty, and no home directory is created in it: its contents are copied into each new volume.
RUN groupadd --gid 1000 mypypi \
 && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /data --shell /usr/sbin/nologin mypypi \
 && install --directory --owner=mypypi --group=mypypi --mode=0750 /data
ENV PATH=/opt/mypypi/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MYPYPI_MODE=server \
    MYPYPI_DATA_DIRECTORY=/data
# A numeric user, so that Kubernetes can verify that it is not root. The user may listen on port 80 because the engine
# sets net.ipv4.ip_unprivileged_port_start=0 in the container's network. If your engine does not set it, set it
# yourself, or set MYPYPI_LISTEN=tcp:8080.
USER 1000:1000
WORKDIR /data
VOLUME /data
EXPOSE 80
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["python", "-m", "mypypi.daemon.container", "check"]
# No shell, so that the daemon gets the signals itself.
CMD ["python", "-m", "mypypi.daemon.container", "run"]

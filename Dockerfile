# The service in a container. Build: docker build -t aigateway .
# Its file is /etc/aigateway/aigateway.toml; mount the directory, so that a change is seen.
# What outlives a restart is in /var/lib/aigateway; mount a volume there, on a local disk.
# The root file system may be read-only, with a tmpfs at /tmp.

# The Python on which the whole suite runs. To pin the base by its digest: --build-arg PYTHON=python:3.11-slim@sha256:...
ARG PYTHON=python:3.11-slim

FROM ${PYTHON} AS build
WORKDIR /source
COPY requirements/image.txt requirements/
# The versions that are tested; every file is checked against its hash.
RUN python -m venv /opt/aigateway \
    && /opt/aigateway/bin/pip install --no-cache-dir --require-hashes --requirement requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY aigateway aigateway
# Neither what builds the package nor pip is left.
RUN /opt/aigateway/bin/pip install --no-cache-dir --no-deps --no-build-isolation . \
    && /opt/aigateway/bin/pip uninstall --yes --quiet hatch-fancy-pypi-readme hatchling pathspec pluggy tomlkit trove-classifiers pip

FROM ${PYTHON}
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin aigateway \
    && mkdir /etc/aigateway \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/aigateway
COPY --from=build /opt/aigateway /opt/aigateway
# In a container 127.0.0.1 is reached by no other; any other address needs keys, and says so.
ENV PATH=/opt/aigateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    AIGATEWAY_SERVER_HOST=0.0.0.0 \
    AIGATEWAY_SERVER_PORT=8080 \
    AIGATEWAY_SERVER_STATE_DIR=/var/lib/aigateway
WORKDIR /etc/aigateway
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
# bash alone, which takes a few milliseconds; Python would take a hundred, every ten seconds.
# The start period is longer than it takes to load litellm on a small machine.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/$AIGATEWAY_SERVER_PORT && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && read -r -t 2 _ status _ <&3 && [ \"$status\" = 200 ]"]
ENTRYPOINT ["aigateway", "serve"]
CMD ["--log-format", "json"]

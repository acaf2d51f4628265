# L'image des scripts de l'exercice 3, que « docker-compose --profile pipeline up -d » construit.
#
# Derrière un mandataire : HTTP_PROXY, HTTPS_PROXY, NO_PROXY et les variables PIP_… de votre terminal sont transmises.
# S'il ouvre les connexions chiffrées, posez son certificat (PEM, nommé en .crt) dans services/ca avant de construire.
FROM python:3.13-slim

COPY services/ca/ /usr/local/share/ca-certificates/
RUN update-ca-certificates

ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_DEFAULT_TIMEOUT
# Sans la ligne « -e . », qui rend le projet importable : ici, PYTHONPATH s'en charge.
COPY requirements.txt /tmp/
RUN grep -v '^-e' /tmp/requirements.txt > /tmp/packages.txt \
 && PIP_CERT=/etc/ssl/certs/ca-certificates.crt python -m pip install --no-cache-dir --disable-pip-version-check -r /tmp/packages.txt

WORKDIR /pipeline
COPY commun/ commun/
COPY exercice3/ exercice3/
# Lisible par tous même si le projet a été cloné sous « umask 077 » ; seuls les exports sont à écrire.
RUN chmod -R a+rX /pipeline \
 && useradd --uid 10001 --no-create-home pipeline \
 && install -d -o pipeline -g pipeline /exports

ENV PYTHONPATH=/pipeline \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    EXPORT_DIR=/exports
USER pipeline
WORKDIR /pipeline/exercice3
CMD ["python", "producer.py"]

#!/usr/bin/env bash
# Makes what compose.yaml needs and nobody else may have, in ./secrets: an authority and a certificate, a token for
# a trainer and the access file that knows it, Grafana's password. What is there already stays: to renew something, remove
# it and run this again. Further names or addresses of this machine for the certificate are arguments: ./make-secrets.sh gpu1
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -f .env ]; then set -a; . ./.env; set +a; fi

preceptor() {
  if [ -n "${PRECEPTOR_COMMAND:-}" ]; then
    $PRECEPTOR_COMMAND "$@"
  else
    docker run --rm --network none "${PRECEPTOR_IMAGE:?name the image in .env}" preceptor "$@"
  fi
}

# Only we can enter `secrets`, so the files below may be readable: containers, which run as other users, get the inner
# folders mounted.
mkdir -p secrets
chmod 0700 secrets
mkdir -p secrets/authority secrets/gateway secrets/trainer secrets/grafana

if [ ! -e secrets/authority/ca.key ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=preceptor compose authority" \
    -keyout secrets/authority/ca.key -out secrets/authority/ca.crt
  chmod 0600 secrets/authority/ca.key
fi
cp secrets/authority/ca.crt secrets/gateway/ca.crt
cp secrets/authority/ca.crt secrets/trainer/ca.crt

if [ ! -e secrets/gateway/tls.crt ]; then
  names="DNS:service,DNS:localhost,IP:127.0.0.1"
  for name in "$@"; do
    if [[ "$name" =~ ^[0-9.]+$|: ]]; then names="$names,IP:$name"; else names="$names,DNS:$name"; fi
  done
  new=secrets/authority/new
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=preceptor gateway" \
    -keyout "$new.key" -out "$new.csr"
  openssl x509 -req -in "$new.csr" -CA secrets/authority/ca.crt -CAkey secrets/authority/ca.key -CAcreateserial \
    -days 365 -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names") -out "$new.crt"
  chmod 0644 "$new.key"
  mv "$new.key" secrets/gateway/tls.key
  mv "$new.crt" secrets/gateway/tls.crt
  rm "$new.csr"
fi

if [ ! -e secrets/trainer/token ]; then
  # The token goes to standard output, its line for the access file to standard error.
  preceptor token --identity trainer >secrets/trainer/new-token 2>secrets/trainer/new-line || {
    cat secrets/trainer/new-line >&2
    exit 1
  }
  line=$(grep '^  sha256:' secrets/trainer/new-line)
  rm secrets/trainer/new-line
  {
    echo "tokens:"
    echo "$line"
    echo "identities:"
    echo '  trainer: {roles: {create: ["*"]}}'
  } >secrets/gateway/new-access.yaml
  mv secrets/gateway/new-access.yaml secrets/gateway/access.yaml
  mv secrets/trainer/new-token secrets/trainer/token
fi

if [ ! -e secrets/grafana/admin-password ]; then
  openssl rand -base64 24 >secrets/grafana/admin-password
fi

echo "secrets/ is complete; Grafana's user admin has the password in secrets/grafana/admin-password"

#!/usr/bin/env bash
# Makes what compose.yaml needs and nobody else may have, in ./secrets: an authority and a certificate, a token for
# a trainer and the access file that knows it, Grafana's password. What is there already stays: to renew something, remove
# it and run this again. A new token takes the place of the trainer's in the access file; whoever else is in it stays.
# Further names or addresses of this machine for the certificate are arguments: ./make-secrets.sh gpu1
set -euo pipefail
umask 022
cd "$(dirname "${BASH_SOURCE[0]}")"
if [ -f .env ]; then set -a; . ./.env; set +a; fi

access=secrets/gateway/access.yaml
if [ -e secrets/trainer/token ] && [ -e "$access" ]; then wants_token=; else wants_token=yes; fi
if [ "$wants_token" ] && [ -z "${PRECEPTOR_COMMAND:-}" ]; then
  : "${PRECEPTOR_IMAGE:?copy .env.example to .env and name the images in it}"
fi

preceptor() {
  if [ -n "${PRECEPTOR_COMMAND:-}" ]; then
    # `command`: it may be called as this function is.
    command $PRECEPTOR_COMMAND "$@"
  else
    docker run --rm --network none "$PRECEPTOR_IMAGE" preceptor "$@"
  fi
}

# Prints the access file with `$1` as the trainer's only line under `tokens:`, and all else as it is.
with_token() {
  awk -v line="$1" '
    is_awaited && /^ *[^ #]/ {
      match($0, /^ */)
      print (RLENGTH ? substr($0, 1, RLENGTH) : "  ") line
      is_awaited = 0
    }
    /^ +["'\'']?sha256:[0-9a-f]+["'\'']?: *[{].*identity["'\'']?: *["'\'']?trainer["'\'']? *[,}]/ { next }
    { print }
    /^tokens: *(#.*)?$/ { is_awaited = has_tokens = 1 }
    END {
      if (!has_tokens) print "tokens:"
      if (is_awaited || !has_tokens) print "  " line
    }' "$access"
}

# Only we can enter `secrets`, so the files below may be readable: containers, which run as other users, get the inner
# folders mounted.
mkdir -p secrets
chmod 0700 secrets
mkdir -p secrets/authority secrets/gateway secrets/trainer secrets/grafana
new=secrets/authority/new
trap 'rm -f "$new".*' EXIT

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
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=preceptor gateway" \
    -keyout "$new.key" -out "$new.csr"
  openssl x509 -req -in "$new.csr" -CA secrets/authority/ca.crt -CAkey secrets/authority/ca.key -CAcreateserial \
    -days 365 -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\n' "$names") -out "$new.crt"
  chmod 0644 "$new.key"
  mv "$new.key" secrets/gateway/tls.key
  mv "$new.crt" secrets/gateway/tls.crt
fi

if [ "$wants_token" ]; then
  # The token goes to standard output, its line for the access file to standard error.
  if ! preceptor token --identity trainer >"$new.token" 2>"$new.line" || ! line=$(grep -o 'sha256:.*' "$new.line"); then
    cat "$new.line" >&2
    echo "no token was made" >&2
    exit 1
  fi
  if [ -e "$access" ]; then
    with_token "$line" >"$new.yaml"
    # Written in a way that is not read here, an old token would go on to open the service.
    if [ "$(grep -v '^ *#' "$new.yaml" | grep -cE "^tokens:|identity[\"']?: *[\"']?trainer[\"']? *([,}#]|$)")" != 2 ]; then
      echo "$access is written in another way than \`preceptor token\` prints it; nothing was changed there." >&2
      echo "Put the trainer's token into one line under 'tokens:', as this one, and run this again:" >&2
      echo "  $line" >&2
      exit 1
    fi
  else
    printf 'tokens:\n  %s\nidentities:\n  trainer: {roles: {create: ["*"]}}\n' "$line" >"$new.yaml"
  fi
  # In this order: were we cut off between the two, there is no token, and the next time makes another.
  mv "$new.yaml" "$access"
  mv "$new.token" secrets/trainer/token
  grep -qE "^ +[\"']?trainer[\"']?:" "$access" || echo "$access grants the identity 'trainer' nothing" >&2
fi

if [ ! -e secrets/grafana/admin-password ]; then
  openssl rand -base64 24 >secrets/grafana/admin-password
fi

echo "secrets/ is complete; Grafana's user admin has the password in secrets/grafana/admin-password"

#!/bin/sh
# Installs the real servers that the test suite starts privately on free ports: Valkey or Redis,
# PostgreSQL, RabbitMQ, Postfix with smtp-sink and SASL. Needs Debian's apt-get and root; without them
# it says what is missing and the suite skips those tests with the reason.
set -eu

missing=""
have() { command -v "$1" >/dev/null 2>&1; }
have redis-server || have valkey-server || missing="$missing redis-server"
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
{ have rabbitmq-server || [ -x /usr/sbin/rabbitmq-server ]; } || missing="$missing rabbitmq-server"
{ [ -x /usr/sbin/postfix ] && [ -x /usr/sbin/smtp-sink ]; } || missing="$missing postfix"
[ -x /usr/sbin/saslpasswd2 ] || missing="$missing sasl2-bin libsasl2-modules"

if [ -z "$missing" ]; then
  echo "services: all installed"
  exit 0
fi
if ! have apt-get || [ "$(id -u)" != 0 ]; then
  echo "services: not installed:$missing"
  echo "services: as root on Debian: apt-get install -y$missing (their tests are skipped until then)"
  exit 0
fi
echo "services: installing$missing"
# No service may start by itself: the suite starts its own.
guard=/usr/sbin/policy-rc.d
if [ ! -e "$guard" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$guard"
  chmod 755 "$guard"
  trap 'rm -f "$guard"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >/dev/null
echo "services: installed$missing"

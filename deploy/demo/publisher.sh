#!/bin/sh
# In place of Rails, for the demo: registers the runners and publishes jobs until it is stopped.
#
#   RUNNERS      names of the runners; each finds its token in the file of that name
#   TOKEN_DIR    where those files are (/var/lib/job-router); made at the first start
#   EVERY_S      seconds between batches of jobs (2)
#
# Where Redis is, the variables JOB_ROUTER_* say.
set -eu
umask 077

: "${RUNNERS:?names of the runners}"
dir=${TOKEN_DIR:-/var/lib/job-router}
every_s=${EVERY_S:-2}

# The registry, as Rails would publish it: the hash of each token, never a token.
registry() {
  id=0
  for runner in $RUNNERS; do
    id=$((id + 1))
    sha256=$(tr -d '\n' <"$dir/$runner" | sha256sum | cut -d ' ' -f 1)
    printf '{"type":"runner.upserted","data":{"id":%d,"token_sha256":"%s","type":"instance","tags":["linux"],"run_untagged":true}}\n' \
      "$id" "$sha256"
  done
}

job() { # id tenant project script
  printf '{"type":"job.pending","data":{"id":%d,"tenant":"%s","project_id":%d,"tags":["linux"],' "$1" "$2" "$3"
  printf '"payload":{"id":%d,"steps":[{"name":"script","script":["%s"]}]}}}\n' "$1" "$4"
}

# Five jobs of three tenants, one of which fails now and then. Ids grow with time, so that none comes twice.
jobs() {
  id=$(($(date +%s) * 10))
  job $((id + 1)) acme 1 'echo building; sleep 1'
  job $((id + 2)) acme 2 'echo testing; sleep 1'
  job $((id + 3)) globex 3 'echo building; sleep 1'
  job $((id + 4)) globex 3 "echo testing; sleep 1; exit $((id / 10 % 7 == 0))"
  job $((id + 5)) initech 4 'echo deploying; sleep 2'
}

all_new=yes
for runner in $RUNNERS; do
  if [ -s "$dir/$runner" ]; then
    all_new=
  else
    printf 'jrt-%s\n' "$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')" >"$dir/$runner.new"
    mv "$dir/$runner.new" "$dir/$runner"
  fi
done

until registry | job-router publish >/dev/null; do sleep 1; done
echo "registered $RUNNERS"

# A Redis that is empty may have lost its data, so that nothing is assigned for a lease, by when all runners of before have
# stopped. There were none if all tokens are new.
if [ -n "$all_new" ]; then
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if job-router events --json | grep -q '"redis.empty"'; then break; fi
    sleep 1
  done
  job-router resume all --by publisher
fi

echo "publishing 5 jobs every $every_s s"
while :; do
  # The runners with each batch, as Redis may lose its data; it changes nothing where they are known.
  if { registry && jobs; } | job-router publish >/dev/null; then touch /tmp/published; fi
  sleep "$every_s"
done

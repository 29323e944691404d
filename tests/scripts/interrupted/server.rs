//! A private Redis on which a script can be interrupted: its functions have the names of ours, so that all else calls
//! them as it would in production, but count what they call, fail where they are told to, and go by a clock that stands.

use std::time::Duration;

use job_router::redis::scripts::ALL;
use job_router::redis::{Arg, PrivateRedis, PrivateRedisOptions, Redis, RedisSettings, Reply};

use crate::support::{World, text};

/// What stands before a script's own text. The hash `interrupt` says where to fail, counting from 1 over all calls, and
/// the time; without it nothing is different. New entries of streams get the time that stands, too.
const INTERRUPT: &str = r#"
local function server() return redis end -- which has more, once the library is loaded
local function is_cut_off(command)
  local f = server().call('HMGET', 'interrupt', 'at', 'calls')
  if not f[1] then return false end
  local calls = tonumber(f[2] or '0') + 1
  server().call('HSET', 'interrupt', 'calls', calls)
  return tostring(calls) == f[1] and 'injected at ' .. command
end
local function timed(command, ...)
  local now = server().call('HGET', 'interrupt', 'now_us')
  if not now then return nil end
  if command == 'TIME' then return { string.sub(now, 1, -7), string.sub(now, -6) } end
  local args = { ... }
  for i = 1, command == 'XADD' and 5 or 0 do
    if args[i] == '*' then
      args[i] = string.sub(now, 1, -4) .. '-*'
      return server().call(command, unpack(args))
    end
  end
end
local redis = { register_function = server().register_function }
function redis.sha1hex(text) return server().sha1hex(text) end
function redis.call(...)
  local failure = is_cut_off((...))
  if failure then error(failure) end
  return timed(...) or server().call(...)
end
function redis.pcall(...)
  local failure = is_cut_off((...))
  if failure then return { err = 'ERR ' .. failure } end
  return server().pcall(...)
end
"#;

/// Name, time to live and content of each key.
const SAVE: &str = r"
local all = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  all[#all + 1] = { key, redis.call('PTTL', key), redis.call('DUMP', key) }
end
return all";

const RESTORE: &str = r"
redis.call('FLUSHDB')
for i = 1, #ARGV, 3 do redis.call('RESTORE', ARGV[i], ARGV[i + 1], ARGV[i + 2]) end";

pub struct Server {
    pub redis: Redis,
    _server: PrivateRedis,
}

/// All that a server had, and a moment later.
pub struct Saved {
    keys: Vec<Arg>,
    now_us: u64,
}

impl Server {
    pub async fn start() -> Self {
        let server = PrivateRedis::start(&PrivateRedisOptions::default()).expect("redis-server starts");
        let settings = RedisSettings { command_timeout: Duration::from_secs(30), ..RedisSettings::new(server.url()) };
        let redis = Redis::connect(&settings).await.expect("connects");
        for script in ALL {
            let (head, rest) = script.source().split_once('\n').expect("more than a line");
            let source = if script.flags().contains("no-writes") {
                script.source().to_owned()
            } else {
                format!("{head}\n{INTERRUPT}\n{rest}")
            };
            redis.command_at("any", "FUNCTION LOAD", ["REPLACE".into(), Arg::from(source)]).await.expect("loads");
        }
        Self { redis, _server: server }
    }

    /// An empty world on it.
    pub async fn world(&self) -> World {
        self.command("FLUSHALL", []).await;
        World::on(self.redis.clone())
    }

    /// Everything that is there, a second ago: whatever comes will be newer.
    pub async fn save(&self) -> Saved {
        let mut keys = Vec::new();
        for key in self.command("EVAL", [SAVE.into(), "0".into()]).await.into_array().expect("keys") {
            let [name, ttl_ms, content] = key.into_tuple().expect("name, time to live, content");
            let ttl_ms = ttl_ms.as_i64().expect("a number").max(0);
            let bytes = |reply: Reply| reply.into_bytes().expect("bytes");
            keys.extend([bytes(name).into(), ttl_ms.into(), bytes(content).into()]);
        }
        let time = self.command("TIME", []).await.into_array().expect("two numbers");
        let [seconds, micros] = [0, 1].map(|at: usize| text(&time[at]).parse::<u64>().expect("a number"));
        Saved { keys, now_us: (seconds + 1) * 1_000_000 + micros }
    }

    /// As it was saved; the call number `at` from now on fails, none with 0.
    pub async fn restore(&self, saved: &Saved, at: u64) {
        self.command("EVAL", [RESTORE.into(), "0".into()].into_iter().chain(saved.keys.iter().cloned())).await;
        self.fail_at(saved, at).await;
    }

    pub async fn fail_at(&self, saved: &Saved, at: u64) {
        let fields = ["at".into(), at.into(), "calls".into(), 0_u64.into(), "now_us".into(), saved.now_us.into()];
        self.command("HSET", [Arg::from("interrupt")].into_iter().chain(fields)).await;
    }

    /// How many commands the scripts have called since.
    pub async fn calls(&self) -> u64 {
        self.command("HGET", ["interrupt".into(), "calls".into()]).await.as_u64().expect("a number")
    }

    pub async fn used_memory(&self) -> u64 {
        let info = text(&self.command("INFO", ["memory".into()]).await);
        let used = info.lines().find_map(|line| line.strip_prefix("used_memory:"));
        used.expect("a line").parse().expect("a number")
    }

    /// `maxmemory`; 0: no limit.
    pub async fn limit_memory(&self, bytes: u64) {
        self.command("CONFIG SET", ["maxmemory".into(), bytes.into()]).await;
    }

    pub async fn command(&self, name: &'static str, args: impl IntoIterator<Item = Arg>) -> Reply {
        self.redis.command_at("any", name, args).await.expect("a reply")
    }
}

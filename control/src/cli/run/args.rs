//! The words of `run`.

use std::net::IpAddr;

use clap::Args;

/// `run`
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  causeway run -- ip address                              on the network 'default'
  causeway run --network web -- ip address
  causeway run --network web --name api -p 8080:80 -p 127.0.0.1::443 -- ./server
  causeway run --network web -P --expose 80 --expose 7000-7010/udp -- ./server; causeway port run-4711
  causeway run --network db --network web -- ./app        the first gives the default route
  causeway run --network web --link db:database -- ./app  'database' is a name for db, here alone
  causeway run --network container:api -- ss -tln         beside api, in its network namespace
  causeway run --network none -- ./offline                nothing but lo; `causeway attach` later
  causeway run --network host -- ./tool                   no sandbox: the network of the caller

The program runs in the foreground with our standard input, output and terminal. It gets SIGINT, SIGTERM,
SIGHUP, SIGQUIT, SIGALRM, SIGUSR1 and SIGUSR2. Its exit status is ours, 128 and the number of the signal
that ended it; 125 when the sandbox could not be made, 126 when the program cannot be started, 127 when it
is not there. It ends with us, however that is. An ordinary user gets a user namespace, as its root; for a
network the daemon's socket must be open to the user.")]
pub struct RunArgs {
    /// The endpoint's name
    #[arg(long)]
    pub name: Option<String>,
    /// A network; repeats. Or 'none' for only lo, 'host' for no sandbox, or 'container:NAME' for the
    /// sandbox of an endpoint, a namespace, a process or a container [default: default]
    #[arg(
        long,
        visible_alias = "net",
        value_name = "NETWORK|none|host|container:NAME"
    )]
    pub network: Vec<String>,
    /// Publish a port: [[IP:]HOST_PORT:]PORT[/tcp|/udp], or ranges; repeats
    #[arg(short, long, value_name = "SPEC")]
    pub publish: Vec<String>,
    /// Publish all that --expose names, on free ports of the host
    #[arg(short = 'P', long, requires = "expose")]
    pub publish_all: bool,
    /// A port that the program serves, for -P; repeats
    #[arg(long, value_name = "PORT[-PORT][/tcp|/udp]")]
    pub expose: Vec<String>,
    /// Know an endpoint of the same network by a name that nobody else has for it; repeats
    #[arg(long, value_name = "NAME[:ALIAS]")]
    pub link: Vec<String>,
    /// A further name on its networks; repeats
    #[arg(long, value_name = "NAME")]
    pub alias: Vec<String>,
    /// A server that its questions for others' names go to; repeats [default: the network's]
    #[arg(long, value_name = "IP")]
    pub dns: Vec<IpAddr>,
    /// The host's name, as the program sees it [default: as it is]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// IPv4 address on the first network, or 'none' [default: a free one]
    #[arg(long, value_name = "IP|none")]
    pub ip: Option<String>,
    /// IPv6 address on the first network, or 'none' [default: a free one]
    #[arg(long, value_name = "IP|none")]
    pub ip6: Option<String>,
    /// MAC on the first network, or 'random' [default: from the address]
    #[arg(long, visible_alias = "mac-address", value_name = "MAC|random")]
    pub mac: Option<String>,
    /// How it is connected: tap, packet, xdp, tap-plain; auto and auto-small: the best that works here
    #[arg(long, default_value = "tap")]
    pub backend: String,
    /// The program with its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub command: Vec<std::ffi::OsString>,
}

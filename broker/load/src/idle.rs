//! Idle connections: what each costs in resident memory.

use clap::{Args, ValueEnum};
use tokio::net::TcpStream;

use crate::Target;
use crate::meter::{Cost, resident_kib};
use crate::mqtt::ACCOUNT;
use crate::mqtt_client;
use crate::xmpp_client::{Login, XmppClient};

/// Resources of one account that are connected at once.
const PER_ACCOUNT: u32 = 10;

/// How many idle connections.
#[derive(Args, Clone, Debug)]
pub struct Plan {
    /// What they speak.
    #[arg(long)]
    pub protocol: Protocol,
    /// How many.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(20..=15_000))]
    pub connections: u32,
}

/// What an idle connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// XMPP in the clear.
    Xmpp,
    /// XMPP over direct TLS.
    Xmpps,
    /// MQTT in the clear.
    Mqtt,
}

/// Accounts that the connections need.
pub fn accounts(plan: &Plan) -> Vec<String> {
    match plan.protocol {
        Protocol::Mqtt => vec![ACCOUNT.into()],
        _ => (0..plan.connections.div_ceil(PER_ACCOUNT)).map(|n| format!("load{n}")).collect(),
    }
}

/// Opens the connections, a tenth of them as a warm-up, and measures what the rest adds.
pub async fn run(target: &Target, plan: &Plan) -> anyhow::Result<Cost> {
    let warm = plan.connections / 10;
    let mut open = Vec::new();
    for n in 0..warm {
        open.push(Idle::connect(target, plan.protocol, n).await?);
    }
    let before = resident_kib(target.pid)?;
    for n in warm..plan.connections {
        open.push(Idle::connect(target, plan.protocol, n).await?);
    }
    let resident_kib = resident_kib(target.pid)? - before;
    Ok(Cost::Idle { connections: (plan.connections - warm).into(), resident_kib })
}

/// Holds a connection open.
enum Idle {
    Xmpp { _open: XmppClient },
    Mqtt { _open: TcpStream },
}

impl Idle {
    async fn connect(target: &Target, protocol: Protocol, n: u32) -> anyhow::Result<Self> {
        if protocol == Protocol::Mqtt {
            let client_id = &format!("idle-{n}");
            let login = mqtt_client::Login { client_id, user: ACCOUNT, password: &target.password, clean: true };
            return Ok(Self::Mqtt { _open: mqtt_client::connect(target.address, login).await? });
        }
        let mut client = match protocol {
            Protocol::Xmpps => XmppClient::connect_tls(target.address, &target.host).await?,
            _ => XmppClient::connect(target.address, &target.host).await?,
        };
        let (user, resource) = (format!("load{}", n / PER_ACCOUNT), format!("idle{n}"));
        client.log_in(Login { user: &user, password: &target.password, resource: &resource }).await?;
        Ok(Self::Xmpp { _open: client })
    }
}

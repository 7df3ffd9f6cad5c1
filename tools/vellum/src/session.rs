//! One client for the length of a command.

use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use vellum_client::{Address, Client, ClientOptions, ConnectOptions};
use vellum_keys::Keys;

use crate::cli::{EngineArgs, KeyArgs, Poll};
use crate::endpoint::Target;
use crate::engine;
use crate::exit::{Exit, WithExit};

/// A person waits: not for ever.
const OPEN_WITHIN: Duration = Duration::from_secs(10);

/// An engine in this process is up when we ask it, so only a starved machine lets us wait; that is no reason to give up
/// (an emulated machine on a loaded host took half a minute).
const OPEN_EMBEDDED_WITHIN: Duration = Duration::from_secs(120);

/// `embedded`: the engine is in this process.
pub fn connect_options(keys: Option<Arc<Keys>>, embedded: bool) -> ConnectOptions {
    let within = if embedded { OPEN_EMBEDDED_WITHIN } else { OPEN_WITHIN };
    ConnectOptions { open_within: Some(within), keys, ..ConnectOptions::default() }
}

/// Connects to `target` (starting an engine for `file:`), runs `work`, and says farewell.
pub fn with_client<T, F>(target: &Target, keys: &KeyArgs, work: impl FnOnce(Rc<Client>) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let connect = connect_options(keys.load()?, matches!(target, Target::Embedded(_)));
    let node = match target {
        Target::Embedded(spec) => {
            let args = EngineArgs { cores: None, poll: Poll::Adaptive, cache: None };
            Some(engine::start(spec, args.options(Vec::new(), 1))?)
        }
        Target::Served(_) => None,
    };
    let address = match (target, &node) {
        (Target::Served(endpoints), _) => Address::from(endpoints.clone()),
        (Target::Embedded(_), Some(node)) => Address::InProcess(node.dialer()),
        (Target::Embedded(_), None) => anyhow::bail!("the engine did not start"),
    };
    let result = vellum_rt::native::block_on(async {
        let options = ClientOptions { spare_groups: 0, ..ClientOptions::default() };
        let client = Client::connect(address, None, connect, options)
            .await
            .with_context(|| format!("cannot reach {target}"))
            .exit(Exit::Endpoint)?;
        let result = work(client.clone()).await;
        let left = client.farewell().await;
        let value = result?;
        left.context("leaving")?;
        Ok(value)
    });
    if let Some(node) = node {
        node.shutdown().context("the engine did not stop cleanly")?;
    }
    result
}

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

pub fn connect_options(keys: Option<Arc<Keys>>) -> ConnectOptions {
    ConnectOptions { open_within: Some(OPEN_WITHIN), keys, ..ConnectOptions::default() }
}

/// Connects to `target` (starting an engine for `file:`), runs `work`, and says farewell.
pub fn with_client<T, F>(target: &Target, keys: &KeyArgs, work: impl FnOnce(Rc<Client>) -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let connect = connect_options(keys.load()?);
    let node = match target {
        Target::Embedded(spec) => {
            let args = EngineArgs { cores: None, poll: Poll::Adaptive, cache: None };
            Some(engine::start(spec, args.options(Vec::new()))?)
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

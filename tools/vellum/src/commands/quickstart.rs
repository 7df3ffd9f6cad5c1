use crate::cli::Quickstart;
pub fn quickstart(_args: &Quickstart) -> anyhow::Result<()> {
    anyhow::bail!("x")
}

//! What tests of whole servers under duress share beside the servers themselves: chance, people who try again, a doctor.

use crate::node::Node;

pub mod dice;
pub mod http;

/// What `waxwing doctor` says of a database that is whole.
pub async fn examine(node: &Node) -> String {
    let output = node.run(&["doctor"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

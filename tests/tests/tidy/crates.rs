//! Who may depend on whom, read from the manifests.

use super::File;

/// Which crates of the workspace each crate may depend on; bench and tests may use all.
const EDGES: [(&str, &[&str]); 5] = [
    ("radix", &[]),
    ("constrained", &[]),
    ("kernels", &[]),
    (
        "runtime",
        &["arbora-radix", "arbora-constrained", "arbora-kernels"],
    ),
    (
        "frontend",
        &["arbora-runtime", "arbora-constrained", "arbora-kernels"],
    ),
];
const NETWORK: [&str; 6] = ["tokio", "hyper", "hyper-util", "axum", "tower", "reqwest"];

/// What is wrong with a member's manifest; nothing for other files.
pub(crate) fn forbidden_dependencies(file: &File) -> Vec<String> {
    let name = file.path.strip_suffix("/Cargo.toml");
    // Fuzz targets lie deeper and are workspaces of their own.
    let Some(name) = name.filter(|name| !name.contains('/')) else {
        return Vec::new();
    };
    let manifest: toml::Table = file.text.parse().expect("a manifest parses");
    let mut found = Vec::new();
    if manifest
        .get("lints")
        .and_then(|lints| lints.get("workspace"))
        .is_none()
    {
        found.push(format!("{name}: does not take the workspace's lints"));
    }
    let edges = EDGES.iter().find(|(of, _)| *of == name).map(|(_, to)| *to);
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(toml::Value::Table(entries)) = manifest.get(section) else {
            continue;
        };
        for (dependency, value) in entries {
            let ours = dependency == "arbora" || dependency.starts_with("arbora-");
            if ours && edges.is_some_and(|edges| !edges.contains(&dependency.as_str())) {
                found.push(format!("{name}: may not depend on {dependency}"));
            }
            // The runtime uses tokio's channel type and, by the rule on lines, nothing else of it.
            let exception = name == "frontend" || name == "runtime" && dependency == "tokio";
            if edges.is_some() && NETWORK.contains(&dependency.as_str()) && !exception {
                found.push(format!("{name}: {dependency} belongs to the frontend"));
            }
            if value.get("workspace").is_none() {
                found.push(format!(
                    "{name}: {dependency} is not taken from [workspace.dependencies]"
                ));
            }
        }
    }
    found
}

#[test]
fn a_forbidden_edge_is_refused() {
    let lints = "[lints]\nworkspace = true\n";
    let cases = [
        (
            "kernels",
            "[dev-dependencies]\narbora-radix.workspace = true\n",
            1,
        ),
        ("runtime", "[dependencies]\narbora.workspace = true\n", 1),
        ("radix", "[dependencies]\ntokio.workspace = true\n", 1),
        ("radix", "[dependencies]\nserde = \"1\"\n", 1),
        (
            "runtime",
            "[dependencies]\ntokio.workspace = true\narbora-radix.workspace = true\n",
            0,
        ),
        (
            "tests",
            "[dev-dependencies]\narbora.workspace = true\nhyper.workspace = true\n",
            0,
        ),
    ];
    for (name, text, n_findings) in cases {
        let file = File {
            path: format!("{name}/Cargo.toml"),
            text: format!("{text}{lints}"),
        };
        assert_eq!(forbidden_dependencies(&file).len(), n_findings, "{name}: {text}");
    }
    let bare = File {
        path: "radix/Cargo.toml".to_owned(),
        text: String::new(),
    };
    assert_eq!(forbidden_dependencies(&bare).len(), 1);
}

//! The manifests for Kubernetes.

use super::containers::USER;
use super::{CONFIG, assert_reads, read, text, texts, understood, walsweep, yaml};
use walsweep::command::cli::Command;

/// The pages that probes ask for are served, and a stand-in is ready for the rollout; that it is
/// shows `tests/main/service.rs`.
#[test]
fn probes_ask_for_pages_that_there_are_and_a_stand_in_blocks_no_rollout() {
    let deployment = yaml("packaging/kubernetes/deployment.yaml");
    let container = &deployment["spec"]["template"]["spec"]["containers"][0];
    let path = |probe: &str| container[probe]["httpGet"]["path"].as_str().unwrap().to_owned();
    assert_eq!(path("startupProbe"), "/healthz");
    assert_eq!(path("livenessProbe"), "/healthz");
    assert_eq!(path("readinessProbe"), "/readyz?rollout");
    let server = read("src/telemetry/http.rs");
    for page in ["\"/healthz\" =>", "\"/readyz\" =>", "Some(\"rollout\")"] {
        assert!(server.contains(page), "{page}");
    }
    let rollout = &deployment["spec"]["strategy"]["rollingUpdate"];
    assert_eq!(rollout["maxUnavailable"].as_i64(), Some(0), "the old one ends after the new one");
    assert_eq!(rollout["maxSurge"].as_i64(), Some(1), "which stands by beside it");
    let port = &container["ports"][0];
    assert_eq!((port["name"].as_str(), port["containerPort"].as_i64()), (Some("http"), Some(9185)));
    assert!(read("packaging/kubernetes/config.toml").contains("listen = \"0.0.0.0:9185\""));
}

#[test]
fn the_deployment_starts_what_the_image_understands_with_what_is_mounted() {
    let deployment = yaml("packaging/kubernetes/deployment.yaml");
    let pod = &deployment["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert!(matches!(understood(&texts(&container["args"])).command, Command::Run { .. }));
    assert!(container["command"].is_badvalue(), "the image's entrypoint");
    let security = &pod["securityContext"];
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        assert_eq!(security[key].as_i64(), Some(USER), "{key}");
    }
    assert!(pod["terminationGracePeriodSeconds"].as_i64() >= Some(15));
    let mounts = container["volumeMounts"].as_vec().unwrap();
    let mounted = |name: &str| {
        let mount = mounts.iter().find(|mount| mount["name"].as_str() == Some(name)).unwrap();
        mount["mountPath"].as_str().unwrap().to_owned()
    };
    assert_eq!(format!("{}/config.toml", mounted("config")), CONFIG);
    let credentials = container["env"].as_vec().unwrap().iter();
    let credentials =
        credentials.filter(|one| one["name"].as_str() == Some("CREDENTIALS_DIRECTORY"));
    let credentials: Vec<_> = credentials.map(|one| one["value"].as_str().unwrap()).collect();
    assert_eq!(credentials, [mounted("passwords")]);
    // No warning that others may read them.
    assert_eq!(pod["volumes"][1]["secret"]["defaultMode"].as_i64(), Some(0o440));
}

/// The names that the manifests use of each other, and the passwords that the configuration wants.
#[test]
fn the_manifests_name_each_other() {
    let kustomization = yaml("packaging/kubernetes/kustomization.yaml");
    for resource in texts(&kustomization["resources"]) {
        assert!(!yaml(&format!("packaging/kubernetes/{resource}")).is_badvalue());
    }
    let config = &kustomization["configMapGenerator"][0];
    let secret = &kustomization["secretGenerator"][0];
    assert_eq!(texts(&config["files"]), ["config.toml"]);
    let passwords = texts(&secret["files"]);
    let passwords: Vec<&str> = passwords.iter().map(String::as_str).collect();
    assert_reads(&read("packaging/kubernetes/config.toml"), &passwords);
    let deployment = yaml("packaging/kubernetes/deployment.yaml");
    let volumes = &deployment["spec"]["template"]["spec"]["volumes"];
    assert_eq!(volumes[0]["configMap"]["name"], config["name"]);
    assert_eq!(volumes[1]["secret"]["secretName"], secret["name"]);
    let image = deployment["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    assert_eq!(kustomization["images"][0]["name"], image);
    let version = text(&walsweep(&["--version"], &[]));
    let tag = kustomization["images"][0]["newTag"].as_str().unwrap();
    assert_eq!(version.trim(), format!("walsweep {tag}"));
    let labels = &deployment["spec"]["selector"]["matchLabels"];
    let disruption = yaml("packaging/kubernetes/disruption.yaml");
    assert_eq!(&disruption["spec"]["selector"]["matchLabels"], labels);
    assert_eq!(&deployment["spec"]["template"]["metadata"]["labels"], labels);
    assert_eq!(disruption["spec"]["maxUnavailable"].as_i64(), Some(1));
    let replicas = deployment["spec"]["replicas"].as_i64();
    assert!(replicas > disruption["spec"]["maxUnavailable"].as_i64(), "one stays");
}

//! What the kubelet and crictl say to a runtime, said by us.

use std::time::Duration;

use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::node::Node;
use crate::process::wait_for;

use proto::image_service_client::ImageServiceClient;
use proto::runtime_service_client::RuntimeServiceClient;

/// Generated from `proto/cri.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub)]
pub(crate) mod proto {
    tonic::include_proto!("runtime.v1");
}

/// Of one call; a pull through a slow registry is the longest.
const CALL_PATIENCE: Duration = Duration::from_secs(120);

/// Connections to the runtime and image services, which may be at different sockets.
pub(crate) struct Cri {
    runtime: Runtime,
    containers: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    group: String,
    logs: String,
}

/// A pod's sandbox on host network, for no node here has a network plugin.
pub(crate) struct Sandbox {
    pub(crate) id: String,
    config: proto::PodSandboxConfig,
}

impl Cri {
    /// The services of a node: containers at containerd's socket, images at `image_socket`.
    pub(crate) fn connect(node: &Node, image_socket: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let channel = |socket: &str| {
            let path = node.path(socket);
            runtime.block_on(async {
                Endpoint::from_shared(format!("unix://{}", path.display()))
                    .expect("a socket's path")
                    .timeout(CALL_PATIENCE)
                    .connect()
                    .await
                    .expect("the socket is served")
            })
        };
        let containers = RuntimeServiceClient::new(channel("run/containerd/containerd.sock"));
        let images = ImageServiceClient::new(channel(image_socket));
        let logs = node.path("log/pods").to_str().expect("text").to_owned();
        let mut cri = Self { runtime, containers, images, group: format!("/{}", node.id), logs };
        wait_for("the CRI services", CALL_PATIENCE, || {
            let status = cri.containers.status(proto::StatusRequest {});
            let status = cri.runtime.block_on(status).ok()?.into_inner().status?;
            status.conditions.iter().any(|c| c.r#type == "RuntimeReady" && c.status).then_some(())
        });
        cri
    }

    /// Pulls an image, with a user's name and password if given.
    pub(crate) fn pull(&mut self, image: &str, auth: Option<(&str, &str)>) -> Result<(), Status> {
        let auth = auth.map(|(username, password)| proto::AuthConfig {
            username: username.to_owned(),
            password: password.to_owned(),
        });
        let request = proto::PullImageRequest { image: spec(image), auth, sandbox_config: None };
        self.runtime.block_on(self.images.pull_image(patient(request))).map(drop)
    }

    /// Pulls many images at once.
    pub(crate) fn pull_all(&mut self, images: &[String]) {
        let pulls = images.iter().map(|image| {
            let mut service = self.images.clone();
            let message =
                proto::PullImageRequest { image: spec(image), auth: None, sandbox_config: None };
            async move { service.pull_image(patient(message)).await }
        });
        let answers = self.runtime.block_on(futures_util::future::join_all(pulls));
        for (image, answer) in images.iter().zip(answers) {
            answer.unwrap_or_else(|status| panic!("pulling {image}: {status}"));
        }
    }

    /// Whether the image is known.
    pub(crate) fn has(&mut self, image: &str) -> bool {
        let request = proto::ImageRequest { image: spec(image) };
        let answer = self.runtime.block_on(self.images.image_status(patient(request)));
        answer.expect("ImageStatus").into_inner().image.is_some()
    }

    pub(crate) fn remove_image(&mut self, image: &str) {
        let request = proto::ImageRequest { image: spec(image) };
        self.runtime.block_on(self.images.remove_image(patient(request))).expect("RemoveImage");
    }

    /// Where the kubelet is told that images are.
    pub(crate) fn image_filesystem(&mut self) -> String {
        let request = patient(proto::ImageFsInfoRequest {});
        let answer = self.runtime.block_on(self.images.image_fs_info(request));
        let usage = answer.expect("ImageFsInfo").into_inner().image_filesystems.remove(0);
        usage.fs_id.expect("an id").mountpoint
    }

    pub(crate) fn run_sandbox(&mut self, name: &str) -> Result<Sandbox, Status> {
        let network = proto::NamespaceMode::Node.into();
        let config = proto::PodSandboxConfig {
            metadata: Some(proto::PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "test".to_owned(),
            }),
            log_directory: self.logs.clone(),
            linux: Some(proto::LinuxPodSandboxConfig {
                cgroup_parent: self.group.clone(),
                security_context: Some(proto::LinuxSandboxSecurityContext {
                    namespace_options: Some(proto::NamespaceOption { network }),
                }),
            }),
        };
        let request = proto::RunPodSandboxRequest { config: Some(config.clone()) };
        let answer = self.runtime.block_on(self.containers.run_pod_sandbox(patient(request)))?;
        Ok(Sandbox { id: answer.into_inner().pod_sandbox_id, config })
    }

    /// Creates and starts a container; its output goes to the log of its name.
    pub(crate) fn start(
        &mut self,
        sandbox: &Sandbox,
        name: &str,
        image: &str,
        command: &[&str],
    ) -> Result<String, Status> {
        let network = proto::NamespaceMode::Node.into();
        let config = proto::ContainerConfig {
            metadata: Some(proto::ContainerMetadata { name: name.to_owned() }),
            image: spec(image),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            args: Vec::new(),
            log_path: format!("{name}.log"),
            linux: Some(proto::LinuxContainerConfig {
                security_context: Some(proto::LinuxContainerSecurityContext {
                    namespace_options: Some(proto::NamespaceOption { network }),
                }),
            }),
        };
        let request = proto::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let answer = self.runtime.block_on(self.containers.create_container(patient(request)))?;
        let container_id = answer.into_inner().container_id;
        let request = proto::ContainerId { container_id: container_id.clone() };
        self.runtime.block_on(self.containers.start_container(patient(request)))?;
        Ok(container_id)
    }

    /// The exit status of a container that ends within `patience`.
    pub(crate) fn exit_status(&mut self, container: &str, patience: Duration) -> i32 {
        let (runtime, containers) = (&self.runtime, &mut self.containers);
        wait_for("the end of a container", patience, || {
            let request = proto::ContainerId { container_id: container.to_owned() };
            let answer = runtime.block_on(containers.container_status(patient(request)));
            let status = answer.expect("ContainerStatus").into_inner().status.expect("a status");
            (status.state() == proto::ContainerState::ContainerExited).then_some(status.exit_code)
        })
    }

    /// What a container has printed, without CRI's prefixes.
    pub(crate) fn log(&self, name: &str) -> String {
        let path = format!("{}/{name}.log", self.logs);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // A line: time, stream, "F" for a whole line, what was printed.
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        lines.map(|line| format!("{line}\n")).collect()
    }

    /// Runs a command in a container: exit status and what it printed.
    pub(crate) fn exec(&mut self, container: &str, command: &[&str]) -> (i32, String) {
        let request = proto::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 60,
        };
        let answer = self.runtime.block_on(self.containers.exec_sync(patient(request)));
        let answer = answer.expect("ExecSync").into_inner();
        (answer.exit_code, String::from_utf8_lossy(&answer.stdout).into_owned())
    }

    pub(crate) fn remove_container(&mut self, container: &str) {
        let request = || patient(proto::ContainerId { container_id: container.to_owned() });
        let containers = &mut self.containers;
        self.runtime.block_on(async {
            containers.stop_container(request()).await.expect("StopContainer");
            containers.remove_container(request()).await.expect("RemoveContainer");
        });
    }

    pub(crate) fn remove_sandbox(&mut self, sandbox: &Sandbox) {
        let request = || patient(proto::PodSandboxId { pod_sandbox_id: sandbox.id.clone() });
        let containers = &mut self.containers;
        self.runtime.block_on(async {
            containers.stop_pod_sandbox(request()).await.expect("StopPodSandbox");
            containers.remove_pod_sandbox(request()).await.expect("RemovePodSandbox");
        });
    }
}

fn spec(image: &str) -> Option<proto::ImageSpec> {
    Some(proto::ImageSpec { image: image.to_owned() })
}

fn patient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(CALL_PATIENCE);
    request
}

//! Every command and flag, as data.

use super::grammar::{Command, Flag, Kind};

const fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Flag {
    Flag { name, short: "", kind, default, env: "", help }
}

impl Flag {
    const fn short(self, short: &'static str) -> Self {
        Self { short, ..self }
    }

    const fn env(self, env: &'static str) -> Self {
        Self { env, ..self }
    }
}

const GLOBAL: &[Flag] = &[
    flag("address", Kind::Text, "/run/containerd/containerd.sock", "containerd's socket")
        .short("a")
        .env("CONTAINERD_ADDRESS"),
    flag("namespace", Kind::Text, "default", "containerd's namespace")
        .short("n")
        .env("CONTAINERD_NAMESPACE"),
    flag("timeout", Kind::Duration, "0s", "most that the command may take; 0s is no limit"),
    flag("debug", Kind::Bool, "", "print requests to registries, and a log on stderr"),
    flag("content-store", Kind::Text, "containerd", "where artifacts are kept: soci, containerd"),
    flag("root", Kind::Text, "/var/lib/soci-snapshotter-grpc/", "directory of the state"),
];

const PLATFORMS: &[Flag] = &[
    flag("all-platforms", Kind::Bool, "", "work on every platform of the image"),
    flag("platform", Kind::Texts, "", "work on this platform only; may be repeated").short("p"),
];

const BUILD: &[Flag] = &[
    flag("span-size", Kind::Int, "4194304", "least uncompressed bytes of a span"),
    flag("min-layer-size", Kind::Int, "10485760", "smaller layers get no zTOC"),
    flag("optimizations", Kind::Texts, "", "experimental: xattr"),
    flag("force", Kind::Bool, "", "build zTOCs also where they are known").short("f"),
    flag("prefetch-file", Kind::Texts, "", "file of the image to fetch early; may be repeated"),
    flag("prefetch-files-json", Kind::Text, "", "JSON file with a list of files to fetch early"),
];

const CONVERT: &[Flag] = &[
    flag("standalone", Kind::Bool, "", "from an OCI layout or archive to another, no containerd"),
    flag("format", Kind::Format, "oci-archive", "with --standalone: oci-archive or oci-dir"),
];

const REGISTRY: &[Flag] = &[
    flag("skip-verify", Kind::Bool, "", "believe every certificate").short("k"),
    flag("plain-http", Kind::Bool, "", "speak plain HTTP"),
    flag("user", Kind::Text, "", "USER[:PASSWORD] for the registry").short("u"),
    flag("refresh", Kind::Text, "", "refresh token for the registry"),
    flag("hosts-dir", Kind::Texts, "", "directory with hosts.toml files"),
    flag("tlscacert", Kind::Text, "", "file with certificates to believe"),
    flag("tlscert", Kind::Text, "", "file with our certificate"),
    flag("tlskey", Kind::Text, "", "file with our key"),
    flag("http-dump", Kind::Bool, "", "the same as --debug"),
    flag("http-trace", Kind::Bool, "", "the same as --debug"),
];

const SNAPSHOTTER: &[Flag] =
    &[flag("snapshotter", Kind::Text, "", "name of the snapshotter").env("CONTAINERD_SNAPSHOTTER")];

const PUSH: &[Flag] = &[
    flag("existing-index", Kind::Text, "warn", "if there is one already: warn, skip, allow"),
    flag("max-concurrent-uploads", Kind::Uint, "3", "uploads side by side; 0 is the default"),
    flag("quiet", Kind::Bool, "", "print digests only").short("q"),
];

const RPULL: &[Flag] = &[
    flag("label", Kind::Texts, "", "KEY=VALUE for the image's record; may be repeated"),
    flag("soci-index-digest", Kind::Text, "", "SOCI index to use"),
    flag("skip-content-verify", Kind::Bool, "", "has no effect"),
];

const INDEX_LIST: &[Flag] = &[
    flag("ref", Kind::Text, "", "indexes of this image only"),
    flag("quiet", Kind::Bool, "", "print digests only").short("q"),
    flag("platform", Kind::Texts, "", "indexes of this platform only; may be repeated").short("p"),
];

const INDEX_RM: &[Flag] = &[flag("ref", Kind::Text, "", "all indexes of this image")];

const ZTOC_LIST: &[Flag] = &[
    flag("ztoc-digest", Kind::Text, "", "this zTOC only"),
    flag("image-ref", Kind::Text, "", "zTOCs of this image only"),
    flag("quiet", Kind::Bool, "", "print digests only").short("q"),
];

const GET_FILE: &[Flag] = &[flag("output", Kind::Text, "", "file to write to").short("o")];

const JSON: &[Flag] = &[flag("json", Kind::Bool, "", "print JSON")];

const fn command(
    names: &'static [&'static str],
    arguments: &'static str,
    help: &'static str,
    flags: &'static [&'static [Flag]],
) -> Command {
    Command { names, arguments, help, flags, subcommands: &[], passes_on: false }
}

const fn group(
    names: &'static [&'static str],
    help: &'static str,
    subcommands: &'static [Command],
) -> Command {
    Command { names, arguments: "", help, flags: &[], subcommands, passes_on: false }
}

const RUN: Command = Command {
    passes_on: true,
    ..command(
        &["run"],
        "[OPTIONS OF CTR RUN] IMAGE CONTAINER [COMMAND]",
        "run a container by containerd's ctr (as releases up to 0.4 did)",
        &[],
    )
};

const INDEX: &[Command] = &[
    command(&["list", "ls"], "", "list SOCI indexes", &[INDEX_LIST]),
    command(&["info"], "DIGEST", "print a SOCI index", &[]),
    command(&["remove", "rm"], "DIGEST...", "remove SOCI indexes", &[INDEX_RM]),
];

const ZTOC: &[Command] = &[
    command(&["info"], "DIGEST", "print what a zTOC says", &[]),
    command(&["get-file"], "DIGEST FILE", "get a file of a layer by its zTOC", &[GET_FILE]),
    command(&["list", "ls"], "", "list zTOCs", &[ZTOC_LIST]),
];

const PREFETCH: &[Command] = &[
    command(&["list", "ls"], "", "list prefetch artifacts", &[JSON]),
    command(&["info"], "DIGEST", "print a prefetch artifact", &[JSON]),
];

const IMAGE: &[Command] = &[command(
    &["rpull"],
    "IMAGE",
    "pull an image for the snapshotter (as releases up to 0.4 did)",
    &[REGISTRY, SNAPSHOTTER, PLATFORMS, RPULL],
)];

/// The whole command line.
pub static PROGRAM: Command = Command {
    names: &["soci"],
    arguments: "",
    help: "make and use SOCI indexes, by which containers start before their image is there",
    flags: &[GLOBAL],
    subcommands: &[
        group(&["index"], "SOCI indexes", INDEX),
        group(&["ztoc"], "zTOCs", ZTOC),
        group(&["prefetch"], "prefetch artifacts", PREFETCH),
        group(&["image"], "images", IMAGE),
        command(&["create"], "IMAGE", "make a SOCI index for an image", &[BUILD, PLATFORMS]),
        command(
            &["convert"],
            "IMAGE DESTINATION",
            "make an image that carries its SOCI indexes",
            &[BUILD, CONVERT, PLATFORMS],
        ),
        command(
            &["push"],
            "IMAGE",
            "push the SOCI index of an image to its registry",
            &[REGISTRY, SNAPSHOTTER, PUSH, PLATFORMS],
        ),
        command(&["rebuild-db"], "", "record anew what the content store holds", &[]),
        RUN,
    ],
    passes_on: false,
};

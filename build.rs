//! Compiles the protocol with protox, in Rust, so that no protoc has to be installed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    #[cfg(feature = "client")]
    protocol()?;
    Ok(())
}

#[cfg(feature = "client")]
fn protocol() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["thrifty/location/v1/location.proto", "thrifty/store/v1/store.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("thrifty.bin"), protox::prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .bytes(".")
        .codec_path("crate::wire::bounded::Bounded")
        .build_client(true)
        .build_server(std::env::var_os("CARGO_FEATURE_LOCATION").is_some())
        .compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}

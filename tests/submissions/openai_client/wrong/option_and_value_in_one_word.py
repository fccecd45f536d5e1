"""Puts the option and its value into one word, as a shell line would have them.

fails: test_command_options test_command_all_fields
"""


# %% task="serve_command"
def serve_command(config: ServerConfig) -> tuple[list[str], dict[str, str]]:
    """The command that starts the server, and what its environment needs beside the usual.

    Args:
        config: what to start.

    Returns:
        The command as a list of words, and a dict of environment variables.
    """
    command = ["vllm", "serve", config.model]
    for name, value in vars(config).items():
        option = "--" + name.replace("_", "-")
        if name in ("model", "api_key") or value is None:
            continue
        if name == "enforce_eager":
            command += [option] if value else []
        elif name == "enable_prefix_caching":
            command.append(option if value else f"--no-{option[2:]}")
        else:
            command.append(f"{option} {value}")
    return command, {} if config.api_key is None else {"VLLM_API_KEY": config.api_key}

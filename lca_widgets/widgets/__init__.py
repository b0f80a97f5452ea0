"""Parts every lab is made of: live charts, control panel, toolbar, runner."""

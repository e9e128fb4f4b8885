"""A GStreamer RTSP server with test pictures: rtsp_server.py PORT [USER PASSWORD], without which
nobody sees them. Runs on Debian's python3-gi."""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer  # noqa: E402

Gst.init(None)
server = GstRtspServer.RTSPServer()
server.set_service(sys.argv[1])
factory = GstRtspServer.RTSPMediaFactory()
factory.set_launch(
    "( videotestsrc is-live=true ! video/x-raw,width=320,height=240,framerate=20/1 "
    "! x264enc tune=zerolatency speed-preset=ultrafast key-int-max=10 ! rtph264pay name=pay0 )"
)
factory.set_shared(True)
if len(sys.argv) > 2:
    auth, role = GstRtspServer.RTSPAuth(), GstRtspServer.RTSPToken()
    role.set_string(GstRtspServer.RTSP_TOKEN_MEDIA_FACTORY_ROLE, "viewer")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic(*sys.argv[2:4]), role)
    server.set_auth(auth)
    allowed = GstRtspServer.RTSPPermissions()
    for permission in ("access", "construct"):
        allowed.add_permission_for_role("viewer", f"media.factory.{permission}", True)
    factory.set_permissions(allowed)
server.get_mount_points().add_factory("/test", factory)
server.attach(None)
GLib.MainLoop().run()

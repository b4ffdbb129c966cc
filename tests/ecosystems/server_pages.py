"""Simple pages as real servers write them, for the tests of this package.

Their shape was copied from the servers' sources and answers; hosts and hashes are made up.
"""

from __future__ import annotations

from tests.ecosystems.simple_pages import SHA256, WHEEL, anchor

SDIST = "holy-grail-0.9.tar.gz"
FILES = anchor(WHEEL) + anchor(SDIST)

#: Pages of the project holy-grail, which list `WHEEL` and `SDIST`.
PROJECT_PAGES = {
    "PyPI": f"""<!DOCTYPE html>
<html>
  <head>
    <meta name="pypi:repository-version" content="1.4">
    <title>Links for holy-grail</title>
  </head>
  <body>
    <h1>Links for holy-grail</h1>
{FILES}</body>
</html>
<!--SERIAL 28467182-->""",
    "bandersnatch": f"""<!DOCTYPE html>
<html>
  <head>
    <meta name="pypi:repository-version" content="1.0">
    <title>Links for Holy_Grail</title>
  </head>
  <body>
    <h1>Links for Holy_Grail</h1>
{FILES}  </body>
</html>
<!--SERIAL 28467182-->""",
    "devpi": f"""<!DOCTYPE html><html><head><title>root/pypi: links for holy-grail</title></head><body>\
<h1>root/pypi: links for holy-grail</h1>
<form action="https://devpi.example/root/pypi/+simple/holy-grail/refresh" method="post">\
<input name="refresh" type="submit" value="Refresh"/></form>\
root/pypi <a href="../../+f/a1a/{WHEEL}#sha256={SHA256}" data-requires-python="&gt;=3.9">{WHEEL}</a><br/>
root/pypi <a href="../../+f/a1a/{SDIST}#sha256={SHA256}" data-yanked="">{SDIST}</a><br/>
</body></html>""",
    "pypiserver": f"""    <html>
        <head>
            <title>Links for holy-grail</title>
        </head>
        <body>
            <h1>Links for holy-grail</h1>
                 <a href="/packages/{WHEEL}#md5={"0f" * 16}">{WHEEL}</a><br>
                 <a href="/packages/{SDIST}#md5={"0f" * 16}">{SDIST}</a><br>
        </body>
    </html>
    """,
    "Artifactory": f"""<!DOCTYPE html>
<html><head><title>Links for holy-grail</title></head>
<body>
<h1>Links for holy-grail</h1>
<a href="../../1.0/{WHEEL}#sha256={SHA256}" data-requires-python="&gt;=3.9" rel="internal">{WHEEL}</a><br/>
<a href="../../0.9/{SDIST}#sha256={SHA256}" rel="internal">{SDIST}</a><br/>
</body></html>""",
    "Nexus": f"""<html lang="en">
<head><title>Links for holy-grail</title>
<meta name="api-version" value="2"/>
</head>
<body>
<h1>Links for holy-grail</h1>
    <a href="../../packages/holy-grail/1.0/{WHEEL}#sha256={SHA256}" rel="internal">{WHEEL}</a><br/>
    <a href="../../packages/holy-grail/0.9/{SDIST}#sha256={SHA256}" rel="internal">{SDIST}</a><br/>
</body>
</html>""",
    "GitLab": f"""<!DOCTYPE html>
        <html>
          <head>
            <title>Links for holy.grail</title>
          </head>
          <body>
            <h1>Links for holy.grail</h1>
            <a href="https://gitlab.example/api/v4/projects/1/packages/pypi/files/{SHA256}/{WHEEL}#sha256={SHA256}"\
 data-requires-python="">{WHEEL}</a><br>\
<a href="https://gitlab.example/api/v4/projects/1/packages/pypi/files/{SHA256}/{SDIST}#sha256={SHA256}"\
 data-requires-python="">{SDIST}</a><br>
          </body>
        </html>""",
    "PyTorch": f"""<!DOCTYPE html>
<html>
  <body>
    <h1>Links for holy-grail</h1>
{FILES}  </body>
</html>
<!--TIMESTAMP 1793527200-->""",
    "Pyodide": f"""<!DOCTYPE html>
<html>
<head>
<meta name="pypi:repository-version" content="1.0">
<title>Links for holy-grail from Pyodide 0.29 Simple Package Index</title>
</head>
<body>
{FILES}</body>
</html>""",
    "Apache": f"""<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html>
 <head>
  <title>Index of /simple/holy-grail</title>
 </head>
 <body>
<h1>Index of /simple/holy-grail</h1>
  <table>
   <tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th><th><a href="?C=N;O=D">Name</a></th></tr>
   <tr><td valign="top"><img src="/icons/back.gif"></td><td><a href="/simple/">Parent Directory</a></td></tr>
<tr><td><img src="/icons/unknown.gif" alt="[   ]"></td><td><a href="{WHEEL}">{WHEEL}</a></td></tr>
<tr><td><img src="/icons/compressed.gif" alt="[   ]"></td><td><a href="{SDIST}">{SDIST}</a></td></tr>
   <tr><th colspan="5"><hr></th></tr>
</table>
<address>Apache/2.4 Server at files.example Port 443</address>
</body></html>""",
    "nginx": f"""<html>\r
<head><title>Index of /simple/holy-grail/</title></head>\r
<body>\r
<h1>Index of /simple/holy-grail/</h1><hr><pre><a href="../">../</a>\r
<a href="{WHEEL}">{WHEEL}</a>                   01-Nov-2026 10:00                1234\r
<a href="{SDIST}">{SDIST}</a>                   01-Nov-2026 10:00                1234\r
</pre><hr></body>\r
</html>\r
""",
    "Caddy": f"""<!DOCTYPE html>
<html><head><title>holy-grail/</title><script>var filterEl;</script></head>
<body><input type="text" placeholder="filter" id="filter">
<table><tr><td><a href="./{WHEEL}"><svg><use xlink:href="#file"></use></svg><span>{WHEEL}</span></a></td></tr>
<tr><td><a href="./{SDIST}"><svg><title>File</title></svg><span>{SDIST}</span></a></td></tr></table></body></html>""",
    "Python's http.server": f"""<!DOCTYPE HTML>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Directory listing for /holy-grail/</title>
</head>
<body>
<h1>Directory listing for /holy-grail/</h1>
<hr>
<ul>
<li><a href="{WHEEL}">{WHEEL}</a></li>
<li><a href="{SDIST}">{SDIST}</a></li>
</ul>
<hr>
</body>
</html>""",
    "no more than anchors": FILES,
    "capitals": f'<HTML><BODY><A HREF="{WHEEL}">{WHEEL}</A><BR><A HREF="{SDIST}">{SDIST}</A></BODY></HTML>',
    "no quotes and no end tags": f"<a href={WHEEL}>{WHEEL}<a href={SDIST}>{SDIST}",
}

NAMES = """<a href="/simple/holy-grail/">Holy_Grail</a><br/>
<a href="/simple/spam/">spam</a><br/>
"""
#: Lists of the projects Holy_Grail and spam, below ``/simple/``.
ROOT_PAGES = {
    "PyPI": f"""<!DOCTYPE html>
<html>
  <head>
    <meta name="pypi:repository-version" content="1.4">
    <title>Simple index</title>
  </head>
  <body>
{NAMES}</body>
</html>
<!--SERIAL 28467182-->""",
    "devpi": """<!DOCTYPE html><html><head><title>root/dev: simple list (including inherited indices)</title></head>\
<body><h1>root/dev: simple list (including inherited indices)</h1><h2>root/dev (bases: root/pypi)</h2>\
<a href="holy-grail/">Holy_Grail</a><br/>
<h2>root/pypi</h2><a href="spam/">spam</a><br/>
</body></html>""",
    "pypiserver": """    <html>
        <head>
            <title>Simple Index</title>
        </head>
        <body>
            <h1>Simple Index</h1>
                 <a href="holy-grail/">Holy_Grail</a><br>
                 <a href="spam/">spam</a><br>
        </body>
    </html>""",
    "Nexus": """<html lang="en">
<head><title>Simple Index</title>
<meta name="api-version" value="2"/>
</head>
<body>
    <a href="holy-grail/">Holy_Grail</a><br/>
    <a href="spam/">spam</a><br/>
</body>
</html>""",
    "GitLab": """<!DOCTYPE html>
        <html>
          <head>
            <title>Links for My Group</title>
          </head>
          <body>
            <h1>Links for My Group</h1>
            <a href="https://gitlab.example/api/v4/projects/1/packages/pypi/simple/holy-grail"\
 data-requires-python="">Holy_Grail</a><br>\
<a href="https://gitlab.example/api/v4/projects/1/packages/pypi/simple/spam" data-requires-python="">spam</a><br>
          </body>
        </html>""",
    "PyTorch": f"""<!DOCTYPE html>
<html>
  <body>
{NAMES}  </body>
</html>
<!--TIMESTAMP 1793527200-->""",
    "Apache": """<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN">
<html><head><title>Index of /simple</title></head><body><h1>Index of /simple</h1><table>
<tr><th><a href="?C=N;O=D">Name</a></th><th><a href="?C=M;O=A">Last modified</a></th>
<th><a href="?C=S;O=A">Size</a></th></tr>
<tr><td><a href="/">Parent Directory</a></td></tr>
<tr><td><img src="/icons/folder.gif" alt="[DIR]"></td><td><a href="holy-grail/">Holy_Grail/</a></td></tr>
<tr><td><img src="/icons/folder.gif" alt="[DIR]"></td><td><a href="spam/">spam/</a></td></tr>
</table></body></html>""",
    "nginx": """<html>\r
<head><title>Index of /simple/</title></head>\r
<body>\r
<h1>Index of /simple/</h1><hr><pre><a href="../">../</a>\r
<a href="holy-grail/">Holy_Grail/</a>                   01-Nov-2026 10:00                   -\r
<a href="spam/">spam/</a>                               01-Nov-2026 10:00                   -\r
</pre><hr></body>\r
</html>\r
""",
    "static files": '<a href="holy-grail/index.html">Holy_Grail</a> <a href="spam/index.html">spam</a>',
    "full addresses": """<a href="https://index.example/simple/holy-grail">Holy_Grail</a>
<a href="https://index.example/simple/spam">spam</a>""",
    "no more than anchors": NAMES,
}
